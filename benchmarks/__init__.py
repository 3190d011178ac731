"""One script a question: a ratio against a peer or a limit, as JSON and Markdown."""
