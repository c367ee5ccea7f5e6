"""Where a loader's time goes, as text and as a page. Begin with loader_page.py."""
