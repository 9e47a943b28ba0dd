"""Read rows from files and the Hub, and detect their format; errors name file, line and column."""
