"""From one run to shared knowledge: what is sent, when it counts, and what many runs say together. Pure, and without torch."""
