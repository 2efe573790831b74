"""The pure machines: what happens on a farm. No socket, clock, file, thread or pickle is known in here."""
