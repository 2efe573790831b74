"""What people see: the commands, the status tables and the live dashboard. Nothing below knows about it."""
