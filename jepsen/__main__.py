from jepsen.commands import jepsen

if __name__ == "__main__":
    jepsen(prog_name="python -m jepsen")
