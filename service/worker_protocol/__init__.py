"""What crosses between the API process and a worker process besides tokens. Plain values."""
