"""What differs between operating systems, and what a process may do."""
