"""Reports as plain data, and a renderer for each format: terminal, page, Markdown, JUnit."""
