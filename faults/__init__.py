"""What happens when files are damaged, processes are killed and disks are full: attempts, and tables of their outcomes."""
