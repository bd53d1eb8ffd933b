"""From files and data frames to typed columns, with every bad record set aside and named."""
