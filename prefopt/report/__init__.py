"""Pages, tables and cards: self-contained HTML, readable offline, on a phone, on paper, and without colour."""
