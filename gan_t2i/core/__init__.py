"""What everything else stands on: strict configs, errors, files, devices, processes, images."""
