"""What operators compute with: factors, codebooks, packed bits, layers with rounded numbers. Nothing here is an operator."""
