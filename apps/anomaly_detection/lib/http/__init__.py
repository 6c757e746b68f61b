"""What MONAI Label's HTTP server lacks: errors that say what to do, limits, and a loop that stays free while others work."""
