"""The ports of BLIP-2 and MiniGPT-4 that EasyEdit's master brings itself."""
