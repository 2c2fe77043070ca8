"""The command line: it reads arguments, asks `config`, `client` or `server`, and presents the answer.

Must hold no logic of its own. One module a command; each is imported when its command is called, and imports what
is heavy (asyncio, cryptography, rich, structlog, YAML) only inside its function, since a shell command must feel
instant.
"""
