"""What a run says about itself: how its streams are used, and how much memory it takes."""
