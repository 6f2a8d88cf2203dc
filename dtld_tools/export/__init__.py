"""A dataset in other formats, and as a contact sheet."""
