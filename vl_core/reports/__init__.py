"""What is said about states and pictures: figures, plots, sheets. Nothing here changes either."""
