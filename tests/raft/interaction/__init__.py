"""The environment in which transcripts run: a group of replicas whose disks and network move only when told to.

Read: script (the form of a transcript), commands (what a line may say), cluster and member (what it acts on),
describe (how things are printed).
"""
