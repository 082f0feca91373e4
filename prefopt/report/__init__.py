"""Reports: self-contained HTML pages, readable offline, on a phone, on paper, and without telling colours apart."""
