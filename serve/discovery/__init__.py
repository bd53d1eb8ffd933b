"""What people see of a recommender's thinking: reasons, dials between the familiar and the new, segments."""
