"""What a stored run answers, and how it is shown: rows -> ``build`` -> ``Answers`` -> text, JSON, Markdown or HTML."""
