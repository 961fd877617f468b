"""What every part uses: errors, files, settings, and Ray."""
