"""The sweep spec and the records of a sweep: plain, validated data that every package may read."""
