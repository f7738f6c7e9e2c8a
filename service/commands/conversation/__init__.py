"""What `tetrad chat` and `tetrad complete` show and read: answers, typed messages, a dialogue."""
