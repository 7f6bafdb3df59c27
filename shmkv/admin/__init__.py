"""`shmkv-admin`: one file for each command; `cli` finds them, `session` is what they share."""
