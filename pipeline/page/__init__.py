"""What all pages share: colours, letters, layout, and pictures inside the page."""
