"""What a finished run leaves for people: summary.json and a self-contained HTML report."""
