"""What a trained model says of videos."""
