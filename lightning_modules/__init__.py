"""The methods: one folder a paper. Import a method by its full path; nothing is imported here."""
