"""The paper itself: its theory word for word, and its figures drawn anew."""
