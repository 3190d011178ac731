"""Reports as pages of HTML with everything inside."""
