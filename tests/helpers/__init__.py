"""What several test files share: small models, pictures, runs, folders and comparisons."""
