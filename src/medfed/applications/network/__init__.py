"""A network of institutions on one machine: every party a folder, processes and, where it can be, a system user of its own."""
