"""What tests share: tiny models and data, a Hub on the loopback, scripts as their users run them."""
