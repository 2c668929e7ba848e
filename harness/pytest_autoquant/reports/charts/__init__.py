"""The data of every chart, and static pictures of it."""
