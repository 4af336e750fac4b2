"""What was made once and is kept: entries by key, what lies there, and which runs need it."""
