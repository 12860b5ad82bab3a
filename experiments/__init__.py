"""One thin binary a published result, and what they share (`flags`, `report`)."""
