"""Networks that other people wrote, each converted in a process of its own."""
