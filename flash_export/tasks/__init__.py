"""What models predict and what their users feel: comparing outputs, scoring held-out data, measuring a loss."""
