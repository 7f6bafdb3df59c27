"""Who starts, watches and ends the processes of a store; see README.md beside this file."""
