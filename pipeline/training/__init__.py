"""The next policy out of selected pairs: TRL's trainers or a command of the user's, in a process of its own."""
