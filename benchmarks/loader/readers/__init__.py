"""The competitors of ``fastrot bench loader``, one file each: bare, in their best set-up."""
