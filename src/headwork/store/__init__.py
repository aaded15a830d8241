"""Content-addressed results on disk, atomic and resumable.

- ``address``: the name of a result is the hash of everything that can change it
- ``source``: what code a result depends on, read from the source without importing it
- ``results``: the ``Store`` of finished results
- ``publish``: copies of finished results in a folder of the user's
- ``atomic``, ``temporary``, ``disk``: files and folders that are whole or absent, whenever the process is killed

Nothing is re-exported here: the source of this file counts in the hash of all that use the store, so it stays small.
"""
