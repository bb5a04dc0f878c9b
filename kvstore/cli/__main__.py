"""`python -m kvstore.cli serve ...`: how `kvstore dev` starts its nodes, with the interpreter that it runs under."""

from kvstore.cli.main import kvstore

if __name__ == "__main__":
    kvstore(prog_name="kvstore")
