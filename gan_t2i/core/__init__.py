"""The ground floor: strict configs, errors, files, pinned weights, devices, processes, images."""
