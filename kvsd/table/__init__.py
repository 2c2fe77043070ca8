"""A table: its append-only log, the index that is read from it, and the actor that alone touches both.

Knows nothing of the wire, of users or of configuration files. Only the actor, its committer and workers, and the
Request that is put to it, know asyncio.
"""
