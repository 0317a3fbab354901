"""Reports: blocks rendered as Markdown, HTML and on the terminal."""
