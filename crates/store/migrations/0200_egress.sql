-- What an instance may reach outside its zone, as JSON; what was there before had the internet.
ALTER TABLE instances ADD COLUMN egress TEXT NOT NULL DEFAULT '"internet"';
