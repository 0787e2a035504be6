"""What is measured of a distilled set: accuracy of students, geometry of features."""
