"""Speed: rollouts, training steps, and other implementations beside ours."""
